-- One row per cohort and lag: the mean Jaccard index of visits so far apart.
with

repeats as (

    select * from {{ ref('temporal_repeats') }}

),

final as (

    select
        cohort,
        visit_lag,
        cast(sum(pairs) as bigint) as pairs,
        sum(jaccard) / sum(pairs) as jaccard
    from repeats
    group by 1, 2

)

select * from final
