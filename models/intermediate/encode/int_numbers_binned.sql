-- One row per event token, field and value that training has, with its bin: one bin per
-- value where there are few, else bins of about equal count. Equal values share a bin.
with

numbers as (

    select * from {{ ref('int_numbers_counted') }}

),

cumulated as (

    select
        *,
        sum(train_count) over (
            partition by token_order, field
            order by number
        ) - train_count as count_below,
        sum(train_count) over (partition by token_order, field) as total_count,
        count(*) over (partition by token_order, field) as value_count
    from numbers

),

ranked as (

    select
        *,
        -- the share of training below the middle of the value's rows
        case
            when value_count <= {{ var('number_of_bins') }} then number
            else floor(
                    {{ var('number_of_bins') }} * (count_below + train_count / 2.0)
                    / total_count
                )
        end as bin_key
    from cumulated

),

binned as (

    select
        token_order,
        field,
        number,
        train_count,
        cast(
            dense_rank() over (partition by token_order, field order by bin_key) - 1
            as int
        ) as bin
    from ranked

),

measured as (

    select
        *,
        sum(train_count) over (
            partition by token_order, field, bin
            order by number
        ) - train_count as count_below_in_bin,
        sum(train_count) over (partition by token_order, field, bin) as bin_count
    from binned

)

select * from measured
