-- One row per cohort, rank and type of a visit and number of days until the next.
with

visits as (

    select * from {{ ref('temporal_visits') }}
    where days is not null

),

counted as (

    select
        cohort,
        case
            when visit_order = 1 then '1'
            when visit_order = 2 then '2'
            when visit_order <= 5 then '3-5'
            when visit_order <= 10 then '6-10'
            else '11+'
        end as rank_band,
        visit_concept_id,
        days,
        count(*) as gaps
    from visits
    group by 1, 2, 3, 4

),

final as (

    select
        cohort,
        rank_band,
        visit_concept_id,
        days,
        -- weeks, months and years are days that people agree on
        case
            when days < 0 then 'below 0'
            when days = 0 then '0'
            when days <= 6 then '1-6'
            when days = 7 then '7'
            when days <= 13 then '8-13'
            when days = 14 then '14'
            when days <= 27 then '15-27'
            when days <= 32 then '28-32'
            when days <= 84 then '33-84'
            when days <= 95 then '85-95'
            when days <= 354 then '96-354'
            when days <= 375 then '355-375'
            when days <= 1080 then '376-1080'
            else '1081+'
        end as gap_class,
        -- four to each doubling of 1 + days
        cast(floor(4 * ln(1 + greatest(days, 0)) / ln(2) + 1e-9) as int) as log_bin,
        gaps
    from counted

)

select * from final
